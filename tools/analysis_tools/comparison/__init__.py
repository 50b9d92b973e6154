"""Does KernelWarehouse gain? One small problem, and every network trained on it to the end."""
