"""Load tests of Shoal, as `shoal loadtest`: scenarios as files, a lean trainer that drives them, reports that compare.

Stands on the library like any trainer; the services are processes it starts, watches or finds running, never imports.
"""
