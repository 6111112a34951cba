"""Load on a brain: churn of many students and a thousand streams."""
