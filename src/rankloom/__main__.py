"""`python -m rankloom` is the `rankloom` command."""

from rankloom.cli.main import app

if __name__ == "__main__":
    app(prog_name="rankloom")
