from benchmarks.alignment.rounds.command import main

if __name__ == "__main__":
    main()
