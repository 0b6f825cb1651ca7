"""Groups of workers that hold a model together, and the streams through them.

Who is where, and which file tells it::

    a worker with partitions          the scheduler            a worker with a stage
    ticket   asks for the group  -->  ledger   owns fleets
    remote   the feeder's lane        placing  finds workers
    feed     sends, sends again  <--  state    what is told
                                      order    submitted  -->  serve  the stage's task
    switchboard  <-------- microbatch over the wire ------->   switchboard, stage,
                                                               window
"""
