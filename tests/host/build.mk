# SPDX-License-Identifier: Apache-2.0
# Pure parts of the kernel programs, built for the host: `make -f tests/host/build.mk`.

CLANG ?= $(shell for c in clang-19 clang-20 clang-21 clang; do command -v $$c && exit; done)
HOST_CC := $(firstword $(CLANG) gcc)
HOST_OUT ?= build/host
HOST_CFLAGS := -std=gnu11 -g -O1 -Wall -Wextra -Werror -Wno-unused-function -Wno-unused-parameter \
	-Wno-unknown-warning-option -Wno-implicit-fallthrough -fsanitize=address,undefined \
	-fno-sanitize-recover=all -fno-omit-frame-pointer -Itests/host -Ibpf

.PHONY: host-programs host-fuzzer
host-programs: $(HOST_OUT)/h1_harness $(HOST_OUT)/bounds_harness $(HOST_OUT)/route_harness
host-fuzzer: $(HOST_OUT)/h1_fuzz

$(HOST_OUT)/h1_fuzz: HOST_CFLAGS += -fsanitize=fuzzer
$(HOST_OUT)/%: tests/host/%.c tests/host/build.mk
	@mkdir -p $(HOST_OUT)
	@echo '  HOST    $@'
	@$(HOST_CC) $(HOST_CFLAGS) -MMD -MP -MT $@ -MF $@.d $< -o $@

-include $(wildcard $(HOST_OUT)/*.d)
