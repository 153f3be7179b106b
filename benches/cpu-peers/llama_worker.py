"""llama.cpp through llama-cpp-python's C bindings as a worker: see worker.py for the protocol."""

import ctypes
import sys
import time

import llama_cpp
import numpy

import worker

path, threads = sys.argv[1], int(sys.argv[2])
ROOM = 2048


def quiet(level, text, data):
    if level >= 4:
        sys.stderr.write(text.decode(errors="replace"))


log = llama_cpp.llama_log_callback(quiet)
llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
start = time.perf_counter()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
options = llama_cpp.llama_context_default_params()
options.n_ctx = ROOM
options.n_batch = options.n_ubatch = 512
options.n_threads = options.n_threads_batch = threads
context = llama_cpp.llama_init_from_model(model, options)
load = time.perf_counter() - start
vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))


class Llama:
    def begin(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    def feed(self, ids):
        """Logits of the last token only, which is what a batch of this form asks for."""
        array = (llama_cpp.llama_token * len(ids))(*ids)
        code = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids)))
        if code:
            sys.exit(f"llama_decode: {code}")
        pointer = llama_cpp.llama_get_logits_ith(context, -1)
        self.logits = numpy.ctypeslib.as_array(pointer, shape=(vocab,))
        return int(self.logits.argmax())

    def last_logits(self):
        return self.logits.tolist()


system = llama_cpp.llama_print_system_info().decode()
worker.serve(Llama(), {"versions": f"llama-cpp-python {llama_cpp.__version__}", "load_s": load, "system": system})
