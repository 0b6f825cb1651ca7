"""One partition through its model: encode, run, convert, recover."""
