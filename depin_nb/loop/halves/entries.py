"""The kinds of entries in an iteration's log: `[turn, number, kind, value]`, in the order in which they came about.

`turn`: the device-side evaluation that it belongs to (-1: the making of the item); `number`: the place in the code. A value is data.
"""

VALUE, SIZE, SET, SINK, RAISE, SAID, CALLED, HANDED = range(8)

# VALUE, SIZE, SET: the plain result of the evaluation (a torch.Size and a set travel as lists).
# SINK: device-side values that plain code receives, by value.
# HANDED: the same, where the notebook then acts on a tensor of its own (a sum, a confusion matrix).
# RAISE: the evaluation raised; failures.described.
# SAID: printed, warned or logged within the evaluation; output.py.
# CALLED: the evaluation called back into the body's own function (a closure): the notebook runs that function's half now. Its `number`
# is the evaluation's turn, and 1; its `turn` the next one.
