#!/bin/bash
# A pretraining run under torchrun: run this on every host, with NODE_RANK=0 on the first, 1 on the next, ...
# Made by `medloom launch`. Started again, it continues the run. Status 3: stopped with a checkpoint.
set -eo pipefail
cd {{directory}}
{{setup}}
{{env}}
exec {{python}} -m medloom.pretrain.cluster.torchrun \
  --nnodes {{nodes}} --nproc-per-node {{ranks}} --node-rank "${NODE_RANK:-0}" \
  --master-addr {{master_addr}} --master-port {{master_port}} \
  {{command}}
