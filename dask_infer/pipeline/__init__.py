"""Groups of workers that hold a model together, and the streams through them.

Who is where, and which file tells it::

    a worker with partitions          the scheduler            a worker with a stage
    ticket   asks for the group  -->  ledger   owns fleets
    remote   the feeder's lane        planning, placing, roster, places
    feed     sends, sends again  <--  state    what is told
                                      stage_tasks, order  -->  serve  the stage's task
    switchboard  <-------- microbatch over the wire ------->   switchboard, stage,
                                                               window
"""
