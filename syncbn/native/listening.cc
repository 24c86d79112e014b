// A `bind` for mpirun, into which this library is preloaded (LD_PRELOAD): mpirun of Open MPI 4.1
// listens on all addresses, without an option to change that. If SYNCBN_LISTEN_ON is set to an IPv4
// address, `bind` uses it instead of all addresses; otherwise, as in every rank, it is equivalent
// to the `bind` of the C library.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "library.h"

namespace {

int call_bind(int descriptor, const void* address, socklen_t length) {
  return static_cast<int>(syscall(SYS_bind, descriptor, address, length));
}

}  // namespace

SYNCBN_EXPORT int bind(int descriptor, const struct sockaddr* address, socklen_t length) noexcept {
  const char* text = getenv("SYNCBN_LISTEN_ON");
  in_addr only;
  if (text == nullptr || address == nullptr || inet_pton(AF_INET, text, &only) != 1)
    return call_bind(descriptor, address, length);
  if (address->sa_family == AF_INET && length >= sizeof(sockaddr_in)) {
    sockaddr_in four;
    memcpy(&four, address, sizeof four);
    if (four.sin_addr.s_addr == htonl(INADDR_ANY)) four.sin_addr = only;
    return call_bind(descriptor, &four, sizeof four);
  }
  if (address->sa_family == AF_INET6 && length >= sizeof(sockaddr_in6)) {
    sockaddr_in6 six;
    memcpy(&six, address, sizeof six);
    if (IN6_IS_ADDR_UNSPECIFIED(&six.sin6_addr)) {  // becomes an IPv4-mapped address
      six.sin6_addr.s6_addr[10] = six.sin6_addr.s6_addr[11] = 0xff;
      memcpy(&six.sin6_addr.s6_addr[12], &only, sizeof only);
    }
    return call_bind(descriptor, &six, sizeof six);
  }
  return call_bind(descriptor, address, length);
}
