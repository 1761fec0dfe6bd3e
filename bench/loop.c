/* The least that can be called a supervisor, as a measure of what the machine can do: vfork, exec, wait, start again.
   Usage: loop N PROGRAM ARGUMENT... SIGTERM ends all children, then itself. It keeps no log, no state, and answers nobody. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t ending;
static pid_t *pids;
static int count;

static void on_term(int signal_number) { (void)signal_number; ending = 1; }

static pid_t start(char *const arguments[]) {
    pid_t pid = vfork();
    if (pid == 0) {
        execv(arguments[0], arguments);
        _exit(127);
    }
    return pid;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    count = atoi(argv[1]);
    pids = calloc((size_t)count, sizeof *pids);
    char *const *arguments = argv + 2;
    struct sigaction action = {.sa_handler = on_term};
    sigaction(SIGTERM, &action, NULL);
    for (int i = 0; i < count; i++) pids[i] = start(arguments);
    int left = count, told = 0;
    while (left > 0) {
        if (ending && !told) {
            told = 1;
            for (int i = 0; i < count; i++)
                if (pids[i] > 0) kill(pids[i], SIGTERM);
        }
        pid_t pid = wait(NULL);
        if (pid < 0) {
            if (errno == EINTR) continue;
            break;
        }
        for (int i = 0; i < count; i++)
            if (pids[i] == pid) {
                pids[i] = ending ? 0 : start(arguments);
                if (ending) left--;
                break;
            }
    }
    return 0;
}
