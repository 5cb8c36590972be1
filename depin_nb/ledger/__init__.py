"""Who is owed what, and proof that it was paid: wallets, receipts, vouchers, the run's vault, settlement, verification.

A `Ledger` (ledger.py) is what the hub holds; `verify_run` (verify.py) is what anyone can run afterwards.
"""
