"""Groups of workers that hold a model together, and the streams through them.

Who is where, and which file tells it::

    a worker with partitions          the scheduler            a worker with a stage
    ticket   asks for the group  -->  coordinator   owns groups
    remote   the feeder's runner      planning, placer, roster, places
    feed     sends, sends again  <--  state    what is told
                                      stage_tasks, order  -->  serve  the stage's task
    comms_of  <-------- microbatch over the wire ------->   comms_of, stage,
                                                               window
"""
