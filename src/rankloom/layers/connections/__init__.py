"""Connections between the layers of a stack: what a layer reads, and what becomes of its output.

A connection is the loop over the layers, written as its paper writes it. It is called with the
stack's input and the layers, and gives the stack's output:

    connection(x, [layer_1, ..., layer_L])

A layer is any callable from tokens [batch, tokens, dim] to its update, the skip not added; it
normalises its own input where it wants that. It may give fewer tokens than it read: the last ones.
A connection works token by token, so it neither knows nor moves what stands beside a token.
"""
