export FOO=of-the-app
