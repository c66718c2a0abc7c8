"""The decode loop and the runners: from a schedule to logits, sampled tokens and delivered text."""
