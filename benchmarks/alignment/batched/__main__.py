from benchmarks.alignment.batched.command import main

if __name__ == "__main__":
    main()
