"""The layouts of one job compared: facts in, projected times and the choice out.

`job_facts` are what is known, `local_layouts` and `remote_layouts` project each layout,
and `choose` takes one.
"""
