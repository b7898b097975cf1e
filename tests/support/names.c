/* Resolves names of a test's own, until they are cut.
 *
 * Loaded with LD_PRELOAD. A name that ends in .stores.test is 127.0.0.1, as long as the file VECSTORE_NAMES_CUT is not
 * there. Once it is, every question for a name hangs for VECSTORE_NAMES_HANG_S seconds and then fails, as with name
 * servers that are out of reach. Numbers are passed on: no resolver is asked for them.
 *
 * It sees who asks the C library. What asks name servers by itself, as c-ares does, must be told not to.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char suffix[] = ".stores.test";

static int is_number(const char *name) {
    unsigned char bytes[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, name, bytes) == 1 || inet_pton(AF_INET6, name, bytes) == 1;
}

static int hang(void) {
    const char *given = getenv("VECSTORE_NAMES_HANG_S");
    struct timespec left = { given ? atoi(given) : 20, 0 };
    while (nanosleep(&left, &left)) {}
    return EAI_AGAIN;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    const char *cut = getenv("VECSTORE_NAMES_CUT");
    if (!next) next = (int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
    if (!name || is_number(name)) return next(name, service, hints, found);
    if (cut && !access(cut, F_OK)) return hang();
    size_t size = strlen(name), tail = sizeof suffix - 1;
    if (size > tail && !strcmp(name + size - tail, suffix)) return next("127.0.0.1", service, hints, found);
    return next(name, service, hints, found);
}
