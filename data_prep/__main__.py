from data_prep.cli import app

if __name__ == "__main__":
    app()
