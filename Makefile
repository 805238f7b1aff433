# Two commands matter: `make demo` runs the main job, `make test` the tests. Each sets itself up.

.PHONY: demo test lint doc check-golden bench peers openblas

# Needs Rust and a linker, nothing else.
demo:
	cargo run --release -p plumbline -- demo

# The reference's SVD and Cholesky use the system's OpenBLAS.
test: openblas
	cargo test --workspace --no-fail-fast

lint: openblas
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

doc: openblas
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Recreates the golden vectors from their oracle and compares; needs Python 3.11 only.
check-golden:
	python3 golden/generate.py --check

bench: openblas
	cargo bench -p plumbline-benches

# PyTorch and plumbline in turn, in one run; needs `pip install -r benches/peers/requirements.txt`.
peers: openblas
	cargo build --release -p plumbline-benches
	python3 benches/peers/l4q_linear.py

# Installs OpenBLAS only when a program cannot be linked with it.
openblas:
	@echo 'int main(void) { return 0; }' | cc -x c - -lopenblas -o /dev/null 2>/dev/null || { \
	  echo "installing libopenblas-dev"; \
	  SUDO=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$SUDO apt-get update -qq && \
	  $$SUDO apt-get install -y -qq --no-install-recommends libopenblas-dev pkg-config; \
	}
