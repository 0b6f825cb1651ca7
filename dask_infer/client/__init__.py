"""What ``predict()`` does at the call, a file a step, in this order.

`request` checks each argument for itself, `model_call` recognises the model,
`call_inputs` finds which columns become which arguments, `tracing` propagates the
shapes of `examples` through the model, `call_outputs` names the columns of the result,
`call_group` cuts the model into stages where the layout asks for them, and
`job_builder` puts all of it into the `Job` that travels.
"""
