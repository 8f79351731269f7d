"""The command; see the package's docstring."""

if __name__ == "__main__":
    from benchmarks.speed.command import main

    main()
