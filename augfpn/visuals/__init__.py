"""What people look at: drawings of detections, plots, the report."""
