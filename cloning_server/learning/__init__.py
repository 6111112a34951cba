"""Fine-tuning one adapter: packing, passes, optimisation and the gate."""
