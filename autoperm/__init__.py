"""Discover permutation symmetries of any PyTorch model; align, compare and merge independently trained models."""

from .graph import Graph as Graph
