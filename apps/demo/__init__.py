"""The Streamlit page: reads the same bundle, results file and library functions as the command line."""
