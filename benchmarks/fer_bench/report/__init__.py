"""`fer-bench report` and `show`: measured figures as an HTML page and plots."""
