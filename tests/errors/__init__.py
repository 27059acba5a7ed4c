"""What public functions say of hostile inputs: the table of spec/errors.md, and the tests that make it."""
