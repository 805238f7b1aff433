# Two commands matter: `make demo` runs the main job, `make test` the tests. Each sets itself up.

.PHONY: demo test lint doc check-golden bench peers ptx check-ptx registers gpu-bundle openblas

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
	python3 benches/peers/linears.py
	python3 benches/peers/llama_step.py

# Compiles the CUDA kernels; needs neither a GPU nor a driver. check-ptx compares instead;
# registers has them assembled for several devices and writes the table of what they use.
CUDA_VENV = target/cuda
CUDA_TOOLS = $$(echo $(CUDA_VENV)/lib/python3*/site-packages/nvidia/cu13)
PTX = PATH=$(CUDA_TOOLS)/bin:$$PATH LD_LIBRARY_PATH=$(CUDA_TOOLS)/lib cargo run -q -p plumbline --example ptx
ptx: $(CUDA_VENV)/installed
	$(PTX)
check-ptx: $(CUDA_VENV)/installed
	$(PTX) -- --check
registers: $(CUDA_VENV)/installed
	$(PTX) -- --registers docs/results/registers.md

# The pinned compiler and assembler, from the package registry's wheels.
$(CUDA_VENV)/installed: optimized/src/cuda/requirements.txt
	python3 -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install -q --no-deps -r $<
	touch $@

# One folder that judges and times the CUDA backend where there is a driver and no Rust.
BUNDLE = target/gpu-bundle
gpu-bundle: openblas
	cargo build --release -p plumbline -p plumbline-conformance -p plumbline-benches --bins
	rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/lib
	cargo bench -q -p plumbline-benches --bench l4q_linear --no-run --message-format=json \
	  | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | xargs -I{} cp {} $(BUNDLE)/l4q_linear_bench
	cp target/release/plumbline target/release/conform target/release/linear $(BUNDLE)
	ldd $(BUNDLE)/conform | sed -n 's/.*=> \(.*\(openblas\|gfortran\|quadmath\).*\) (.*/\1/p' | xargs -I{} cp {} $(BUNDLE)/lib
	strip $(BUNDLE)/plumbline $(BUNDLE)/conform $(BUNDLE)/linear $(BUNDLE)/l4q_linear_bench
	cp -r golden benches/peers benches/gpu/run.sh $(BUNDLE)
	du -sh $(BUNDLE)

# Installs OpenBLAS only when a program cannot be linked with it.
openblas:
	@echo 'int main(void) { return 0; }' | cc -x c - -lopenblas -o /dev/null 2>/dev/null || { \
	  echo "installing libopenblas-dev"; \
	  SUDO=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$SUDO apt-get update -qq && \
	  $$SUDO apt-get install -y -qq --no-install-recommends libopenblas-dev pkg-config; \
	}
