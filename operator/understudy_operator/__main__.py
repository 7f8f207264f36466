"""`python -m understudy_operator` is the operator."""

from understudy_operator.main import main

main()
