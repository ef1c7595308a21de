"""`fer-bench report` and `robustness`: measured figures as an HTML page, plots and tables."""

from fer_runtime.command import keep_caches

keep_caches()  # before a module here imports matplotlib
