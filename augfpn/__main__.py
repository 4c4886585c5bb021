from augfpn.cli import main

main()
