"""What ``predict()`` does at the call, in order: check, recognise, resolve, key."""
