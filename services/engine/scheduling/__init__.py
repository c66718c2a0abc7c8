"""What runs in the next step: scheduler, sequences, slots, pages, fairness, n-gram drafts. No tensors, no threads."""
