"""What a Chromium is called on the systems that have one, for installing it and for the tests."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
