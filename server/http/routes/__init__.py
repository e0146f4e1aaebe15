"""The routes: every module here has an `api`, and the app finds it."""
