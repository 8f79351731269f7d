"""The command; see the package's docstring.

Processes that data sets are saved with import this module: it must stay light, or each takes a second more.
"""

if __name__ == "__main__":
    from benchmarks.alignment.command import main

    main()
