"""Groups of workers that hold a model, and the microbatches that run through them.

The folder says where a file runs::

    worker/ (feeder)              scheduler/                  worker/ (stage)

    group_request  asks   ------> coordinator  owns groups
                                  placer       finds workers
                                  stage_tasks  submits ---> serve_stage   loads, serves
    remote_runner  batches                                  stage_server  runs forwards
    group_client   sends  <------ group        its state    admission     the window
          |                                                 shard_turns   exchanges
          |                                                       |
          +------- microbatch_comms <-- messages/ --> microbatch_comms

`messages/` is what travels between them. `plan/` has the arithmetic: where a model is
cut, and in `plan/window.py` how many microbatches may be in flight.
"""
