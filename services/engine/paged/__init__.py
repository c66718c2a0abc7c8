"""Where a model runs on a GPU: keys and values in pages that sequences share, one call for all of a step's attention,
and steps that are recorded and replayed. `runner` is what the engine sees of it; `pages` has no tensors.
"""
