"""The operations: what a person or a pipeline runs, as opposed to the application."""
