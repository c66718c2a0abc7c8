"""Quantisation of linear layers."""
