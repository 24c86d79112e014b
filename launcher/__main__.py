"""The command line: `python -m launcher VERB`, also installed as `launcher`."""

from launcher.cli.app import main

if __name__ == "__main__":
    main()
