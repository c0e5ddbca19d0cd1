# Run by the container's own /bin/sh: prepares the environment as the image asks, then becomes the program.
# SIPHON_HOST_x holds the host's variable x, SIPHON_SET_x one that the user sets; the _NAMES list them.

siphon_fatal() {
    echo "FATAL:   $1" >&2
    exit 255
}

siphon_complete_path() {
    for siphon_dir in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
        case ":$PATH:" in
            *":$siphon_dir:"*) ;;
            *) PATH=$PATH:$siphon_dir ;;
        esac
    done
}

# Prints TEXT with each FROM replaced by TO.
siphon_replace() {
    siphon_rest=$1
    while :; do
        case $siphon_rest in
            *"$2"*)
                printf '%s%s' "${siphon_rest%%"$2"*}" "$3"
                siphon_rest=${siphon_rest#*"$2"}
                ;;
            *)
                printf '%s' "$siphon_rest"
                return
                ;;
        esac
    done
}

# Evaluates the user's files of variables in a shell of their own, which sees the host's variables, and prints the
# assignments that hand their values to siphon_inject.
siphon_evaluate_files() {
    for siphon_name in $SIPHON_HOST_NAMES; do
        eval "export $siphon_name=\"\$SIPHON_HOST_$siphon_name\""
    done
    eval "$SIPHON_FILE" >&2
    for siphon_name in $SIPHON_FILE_NAMES; do
        eval "[ -n \"\${$siphon_name+x}\" ]" || continue
        eval "siphon_value=\$$siphon_name"
        case $siphon_name in
            PATH | PREPEND_PATH | APPEND_PATH | PREPEND_LD_LIBRARY_PATH | APPEND_LD_LIBRARY_PATH)
                printf "SIPHON_%s='" "$siphon_name"
                ;;
            *)
                printf "SIPHON_SET_NAMES=\"\$SIPHON_SET_NAMES %s\"\nSIPHON_SET_%s='" "$siphon_name" "$siphon_name"
                if [ -n "$SIPHON_EVALUATE" ]; then
                    # A dot keeps line ends at the end from being lost.
                    siphon_value=$(siphon_replace "$siphon_value" '"' '\"'; echo .)
                    siphon_value=${siphon_value%.}
                fi
                ;;
        esac
        siphon_replace "$siphon_value" "'" "'\\''"
        printf "'\n"
    done
}

# The user's variables come between 99-base.sh and 99-runtimevars.sh, so that they win over the image's.
siphon_inject() {
    for siphon_name in $SIPHON_SET_NAMES; do
        # A name that the environment and a file set is listed twice.
        eval "[ -n \"\${SIPHON_SET_$siphon_name+x}\" ]" || continue
        eval "siphon_value=\$SIPHON_SET_$siphon_name"
        if [ -n "$SIPHON_EVALUATE" ]; then
            eval "export $siphon_name=\"$siphon_value\""
        else
            export "$siphon_name=$siphon_value"
        fi
        unset "SIPHON_SET_$siphon_name"
    done
    SIPHON_SET_NAMES=
}

# What the image defined stays; what it defined as empty is taken away; the rest is the host's.
siphon_restore() {
    for siphon_name in $SIPHON_HOST_NAMES; do
        if eval "[ -z \"\${$siphon_name+x}\" ]"; then
            eval "$siphon_name=\$SIPHON_HOST_$siphon_name; export $siphon_name"
        elif eval "[ -z \"\$$siphon_name\" ]"; then
            unset "$siphon_name"
        fi
        unset "SIPHON_HOST_$siphon_name"
    done
}

siphon_check() {
    case $1 in
        */*)
            [ -e "$1" ] || siphon_fatal "stat $1: no such file or directory"
            [ -x "$1" ] && [ ! -d "$1" ] || siphon_fatal "$1: permission denied"
            return
            ;;
    esac
    siphon_rest=$PATH:
    while [ -n "$siphon_rest" ]; do
        siphon_dir=${siphon_rest%%:*}
        siphon_rest=${siphon_rest#*:}
        [ -x "${siphon_dir:-.}/$1" ] && [ ! -d "${siphon_dir:-.}/$1" ] && return
    done
    siphon_fatal "\"$1\": executable file not found in \$PATH"
}

# Finds a script of an app: siphon_script.
siphon_app_script() {
    siphon_script=/scif/apps/$1/scif/$2
    [ -x "$siphon_script" ] && return
    echo "ERROR:   $3: $1" >&2
    exit 1
}

# Some shells count themselves; the program gets the caller's count.
unset SHLVL

if [ -n "$SIPHON_FILE_NAMES" ]; then
    siphon_values=$(siphon_evaluate_files) ||
        siphon_fatal "while setting environment: the shell of the container cannot evaluate the file of --env-file"
    eval "$siphon_values"
fi
unset SIPHON_FILE SIPHON_FILE_NAMES siphon_values

if [ -d /.singularity.d/env ]; then
    for siphon_script in /.singularity.d/env/*.sh; do
        [ -f "$siphon_script" ] || continue
        . "$siphon_script"
        case $siphon_script in
            */10-docker*.sh) siphon_complete_path ;;
            */99-base.sh) siphon_inject ;;
        esac
    done
elif [ -f /environment ]; then
    . /environment
fi
set +eu
unset IFS
siphon_complete_path
siphon_inject
siphon_restore

[ -z "$SIPHON_PATH" ] || PATH=$SIPHON_PATH
[ -z "$SIPHON_PREPEND_PATH" ] || PATH=$SIPHON_PREPEND_PATH:$PATH
[ -z "$SIPHON_APPEND_PATH" ] || PATH=$PATH:$SIPHON_APPEND_PATH
export PATH
siphon_rest=$SIPHON_LIBRARIES
while [ -n "$siphon_rest" ]; do
    siphon_dir=${siphon_rest%%:*}
    case $siphon_rest in
        *:*) siphon_rest=${siphon_rest#*:} ;;
        *) siphon_rest= ;;
    esac
    case ":$LD_LIBRARY_PATH:" in
        *":$siphon_dir:"*) ;;
        *) LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$siphon_dir ;;
    esac
    export LD_LIBRARY_PATH
done
if [ -n "$SIPHON_PREPEND_LD_LIBRARY_PATH" ]; then
    LD_LIBRARY_PATH=$SIPHON_PREPEND_LD_LIBRARY_PATH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
if [ -n "$SIPHON_APPEND_LD_LIBRARY_PATH" ]; then
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$SIPHON_APPEND_LD_LIBRARY_PATH
    export LD_LIBRARY_PATH
fi
# What a CDI specification's enable-cuda-compat asks for: the image's libraries for a newer driver than the host's.
if [ -n "$SIPHON_CUDA_COMPAT" ]; then
    for siphon_file in "$SIPHON_CUDA_COMPAT"/libcuda.so.*.*; do
        siphon_version=${siphon_file##*/libcuda.so.}
        if [ "${siphon_version%%.*}" -gt "$SIPHON_CUDA_DRIVER" ] 2>/dev/null; then
            LD_LIBRARY_PATH=$SIPHON_CUDA_COMPAT${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
            export LD_LIBRARY_PATH
            break
        fi
    done
fi
siphon_app=$SIPHON_APP
siphon_action=$SIPHON_ACTION
siphon_shell=$SIPHON_SHELL
siphon_quiet=$SIPHON_QUIET
unset SIPHON_HOST_NAMES SIPHON_SET_NAMES SIPHON_EVALUATE SIPHON_PATH SIPHON_PREPEND_PATH SIPHON_APPEND_PATH \
    SIPHON_PREPEND_LD_LIBRARY_PATH SIPHON_APPEND_LD_LIBRARY_PATH SIPHON_LIBRARIES SIPHON_CUDA_COMPAT SIPHON_CUDA_DRIVER \
    SIPHON_APP SIPHON_ACTION SIPHON_SHELL SIPHON_QUIET
PS1='Apptainer> '
PROMPT_COMMAND='PS1="Apptainer> "; unset PROMPT_COMMAND'
export PS1 PROMPT_COMMAND

case $siphon_action in
    exec)
        siphon_check "$1"
        exec "$@"
        ;;
    shell)
        if [ -n "$siphon_shell" ]; then
            siphon_check "$siphon_shell"
            exec "$siphon_shell" "$@"
        elif [ -x /bin/bash ]; then
            SHELL=/bin/bash
            export SHELL
            exec /bin/bash --norc "$@"
        fi
        SHELL=/bin/sh
        export SHELL
        exec /bin/sh "$@"
        ;;
    run)
        if [ -n "$siphon_app" ]; then
            siphon_app_script "$siphon_app" runscript "no runscript for contained app"
            exec "$siphon_script" "$@"
        fi
        for siphon_script in /.singularity.d/runscript /singularity; do
            [ -x "$siphon_script" ] && exec "$siphon_script" "$@"
        done
        [ -n "$siphon_quiet" ] || echo "INFO:    No runscript found in container, executing /bin/sh" >&2
        exec /bin/sh "$@"
        ;;
    test)
        if [ -n "$siphon_app" ]; then
            siphon_app_script "$siphon_app" test "No tests for contained app"
            exec "$siphon_script" "$@"
        fi
        [ -x /.singularity.d/test ] && exec /.singularity.d/test "$@"
        [ -n "$siphon_quiet" ] || echo "INFO:    No test script found in container, exiting" >&2
        exit 0
        ;;
    start)
        [ -x /.singularity.d/startscript ] && exec /.singularity.d/startscript "$@"
        [ -n "$siphon_quiet" ] || echo "INFO:    No instance start script found in container" >&2
        exit 0
        ;;
esac
