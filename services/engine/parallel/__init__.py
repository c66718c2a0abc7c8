"""Tensor parallel: one model in several processes, each with a part of every layer.

The process that serves is rank 0, the leader: it schedules and samples as ever, and its executor sends each step to the
others, the followers, which have no scheduler, no tokenizer and no grammars. All compute the step on their parts and
add up, twice in a layer (Megatron-LM, arXiv:1909.08053).
"""
