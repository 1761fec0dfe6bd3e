/* A server of one byte on descriptor 3, as a supervisor hands it over. Usage: answer each|once|this.
   each: answers every connection that it accepts; once: answers one and ends; this: descriptor 3 is the connection. */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int answer(int connection) {
    return write(connection, "x", 1) == 1 && close(connection) == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    if (strcmp(argv[1], "this") == 0) return answer(3);
    int status;
    do {
        int connection = accept(3, NULL, NULL);
        if (connection < 0) return 1;
        status = answer(connection);
    } while (strcmp(argv[1], "each") == 0);
    return status;
}
