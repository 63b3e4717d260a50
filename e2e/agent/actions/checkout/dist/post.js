// The end of the stand-in for actions/checkout.
//@ print Removing the credentials of ${GITHUB_REPOSITORY}, isPost=${STATE_isPost}
