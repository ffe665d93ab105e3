"""What is wrong with rows, or with how they are to be read."""


class WrongRow(Exception):
    """An error in rows. `line`: where. Without a line the message goes on after the name of the file or the body: "has
    no column 'y'"."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class WrongOption(Exception):
    """An option contradicts another one or the model, whatever the rows are. Messages name options as flags of
    `logstep replay`."""
