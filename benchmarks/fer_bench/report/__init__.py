"""`fer-bench report` and `show`: measured figures as an HTML page and plots."""

from fer_runtime.command import keep_caches

keep_caches()  # before a module here imports matplotlib
