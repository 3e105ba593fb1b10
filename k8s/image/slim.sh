# Takes out of the installed packages what only their developers need, then compiles what is left on all cores. In the
# layer that installs them: what a later layer removes is still downloaded. `tests/containers` imports all that we use.
set -eu
packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cd "$packages"
find . -type d \( -name test -o -name tests \) -prune -exec rm -r {} +
# C++ headers and test programs of torch; Ray for Java
rm -rf torch/include torch/bin/protoc* torch/bin/test_* torch/bin/*Test pyarrow/include ray/jars
python -m compileall -q -j 0 . || true # some packages ship templates that are no Python
