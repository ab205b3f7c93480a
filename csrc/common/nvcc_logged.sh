#!/bin/sh
# nvcc_logged.sh NVCC ARGUMENTS: compiles, and keeps what ptxas says of registers and spills beside the object, where
# tests/emulation/test_nvcc.py reads it instead of compiling every source again.
object=
previous=
for argument in "$@"; do
  [ "$previous" = "-o" ] && object=$argument
  previous=$argument
done
log=${object%.o}.nvcc.log
"$@" >"$log.part" 2>&1
status=$?
if [ $status -eq 0 ]; then
  mv "$log.part" "$log"
else
  cat "$log.part" >&2
  rm -f "$log.part" "$log"
fi
exit $status
