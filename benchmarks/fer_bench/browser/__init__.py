"""`fer-bench browser`: the web page measured in Chromium."""
